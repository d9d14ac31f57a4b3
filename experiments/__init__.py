"""Does it hold? Experiments on equal terms, each a script that resumes."""
