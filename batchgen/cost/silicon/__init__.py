"""Inter-token times of real engines against the costs of measured kernels. It simulates nothing.

`rows` reads the table of measurements, `setup` says which model, GPUs and layout a row is, `loop`
predicts a closed loop, `clean` leaves rows out by stated rules, `assess` fits host constants and
tells the errors, `report` puts them into one document.
"""
