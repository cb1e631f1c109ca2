from experiments.glue.study import main

main()
