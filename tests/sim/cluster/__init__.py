"""The whole product in one process under one seed: its threads, clocks, disks, network and Ray are simulated."""
