"""From the workstation to devices: sign, verify, install and activate models. The command is `clf-deploy`."""
