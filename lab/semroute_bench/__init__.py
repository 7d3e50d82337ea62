"""What a decision costs on this machine: `semroute bench` and `make bench`.

Everything is measured side by side in one run and taken in turn, so that a noisy moment falls on all
alike; CPU time stands beside wall time, because other people's load moves only the latter. What is
judged are ratios within the run.

    machine   the machine, CPU time and memory of a process
    load      bodies, and a raw gRPC client that plays Envoy: closed and open loop
    servers   the sidecar and a do-nothing processor as child processes
    wire      a client that costs next to nothing: frames of HTTP/2
    floor     do-nothing processors in Python; native builds the one in C++; floors measures them
    direct    the session alone, the pipeline in process, the server driven directly
    overload  arrivals at fixed rates, below and far above what the machine can do
    growth    a worker's memory over many requests
    scaling   by workers and requests at once, on a GPU or many cores; drive is a client of it
    gateway   through Envoy, against Envoy alone
    run       the parts of a run, and the ratios that are judged
    report    aims and whether they hold, table, plots
    check     a short run against recorded ratios, for CI
    cli       the command
"""
