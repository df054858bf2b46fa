from . import need_bench

need_bench()

from .session import main  # noqa: E402

main()
