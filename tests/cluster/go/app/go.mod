module mesh-observer/tests/cluster/app

go 1.24
