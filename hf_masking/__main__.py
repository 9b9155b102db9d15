"""Run the command line as `python -m hf_masking`."""

from .cli.main import run

if __name__ == "__main__":
    run()
