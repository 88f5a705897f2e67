#!/usr/bin/env bash
# Train stage 2: tools/train_stage2.sh [muse_1b|muse_3b|muse_tiny|FILE.yaml] [key=value ...]; settings: _launch.sh
set -euo pipefail
exec bash "$(dirname "${BASH_SOURCE[0]}")/_launch.sh" 2 "$@"
