"""The one exception that means "the user can fix this"."""


class UserError(ValueError):
    """Bad input or configuration: one clear line that says what to do next.

    The verbs print the message as one line, without a traceback, and exit with status 2.
    """


class Preempted(Exception):  # noqa: N818 - no error: the run did as it was told
    """A signal told a run to stop; it is saved and can go on."""


class RankLost(Exception):  # noqa: N818 - what is wrong is said by the process that ended
    """Another process of a distributed run has ended, or is out of reach."""


REQUEUE = 75
"""Exit status of such a run (EX_TEMPFAIL of sysexits.h): SLURM's RequeueExit, or the batch script's
``scontrol requeue``, acts on it."""
