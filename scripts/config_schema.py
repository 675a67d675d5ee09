"""Print the JSON schema of an experiment, for editors that complete and check YAML.

    python scripts/config_schema.py > configs/schema.json

With the YAML language server, put `# yaml-language-server: $schema=schema.json` on the first line of an experiment.
"""

import json

from gankd.experiment.config import ExperimentConfig

if __name__ == "__main__":
    print(json.dumps(ExperimentConfig.model_json_schema(), indent=2))
