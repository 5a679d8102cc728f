"""A zoo of models held to a baseline: models times recipes, measured, compared, told which got worse.

found = onnxq.zoo.manifest.read_manifest("zoo.yaml")
run = onnxq.zoo.run.run_zoo(found, jobs=2)
verdict = onnxq.zoo.comparison.compare(run, onnxq.zoo.baseline.read_baseline("baseline.json"))
"""
