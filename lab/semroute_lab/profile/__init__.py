"""A model joins without training: it answers questions, and its errors by cluster are its profile.

UniRoute (arXiv 2502.08773, section 4). Serving reads the profile and never imports this package.

    questions   the file of questions
    graders     how an answer becomes right or wrong (pure)
    sandbox     the grader that runs code
    asking      an endpoint, asked again when it fails
    answers     what was answered, so that an interrupted run goes on
    run         all questions, within bounds
    profiling   graded answers to a profile, with intervals
    show        profiles for people
    cli         `semroute profile`
"""
