"""Drawing of a report's figures and pages, shared by two processes."""
