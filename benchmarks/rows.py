"Results as lines of a csv file"
import csv

def append(
    file, # Path of the csv file, written with a header if it is new
    **row # Column → value
):
    "Append `row` to `file`, and print it"
    new = not file.exists()
    with file.open('a', newline='') as f:
        w = csv.DictWriter(f, list(row))
        if new: w.writeheader()
        w.writerow(row)
    print(row, flush=True)
