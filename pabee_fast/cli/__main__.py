from pabee_fast.cli import main

main()
