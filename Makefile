.PHONY: check test demo

check:  ## lint, format, types
	bash scripts/check.sh

test:  ## check and all tests
	bash tests/run.sh

demo:  ## both stages on real images, dense and with STS
	bash examples/quickstart/run.sh
