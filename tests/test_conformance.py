"""Every installed dialect keeps what the contract promises; a new one is examined without a new line here."""

from crmclient.testing.conformance import examined

# The XML API is not through yet: it has no pipelines to draw stages from, and answers in another shape than it is asked
# in; the exam has to learn both. Until then tests/test_amoxml.py examines it.
globals().update(examined(left_out={"amoxml"}))
