"""Extensions of ldmprobe in a package of their own."""
