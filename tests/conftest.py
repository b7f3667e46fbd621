"""What every test may rely on."""

import signal

# A shell that starts the run in the background has it ignore Ctrl-C, and the programs that tests start would too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
