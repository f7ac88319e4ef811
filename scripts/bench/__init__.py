"""What guidance costs beside the network: whole pipelines, and the arithmetic of one step."""
