"""Ways to fine-tune, in one harness: what each gains, forgets and costs. python -m bench.frontier"""
