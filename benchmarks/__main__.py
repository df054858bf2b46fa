from .session import main

main()
