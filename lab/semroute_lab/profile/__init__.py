"""A model joins without training: its errors by cluster of prompts are its profile.

UniRoute (arXiv 2502.08773, section 4). Serving reads the profile and never imports this package.

    questions   the file of questions
    graders     from an answer to right or wrong (pure)
    sandbox     the grader that runs code
    asking      an endpoint that is asked many questions, with retries, bounds and a file of answers
    logs        graded answers from logs of lm-evaluation-harness and Inspect
    profiling   graded answers to a profile, with intervals
    show        profiles as tables
    cli         `semroute profile`
"""
