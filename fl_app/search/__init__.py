"""Search a network at one site: train paths of the supernet, weigh networks, measure memory. Knows no federation."""
