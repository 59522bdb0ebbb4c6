"""What a dialect promises, as tests that ship with the contract they test: third parties take the same exam."""

import sys

if "pytest" in sys.modules:
    # So that a promise that was not kept shows both sides. Without pytest the samples are of use all the same.
    sys.modules["pytest"].register_assert_rewrite("crmclient.testing.conformance")
