"Results as lines of a csv file, and the options of the benchmarks on photographs"
import argparse, csv

def append(
    file, # Path of the csv file, written with a header if it is new
    **row # Column → value
):
    "Append `row` to `file`, and print it"
    new = not file.exists()
    with file.open('a', newline='') as f:
        w = csv.DictWriter(f, list(row), lineterminator='\n')
        if new: w.writeheader()
        w.writerow(row)
    print(row, flush=True)

def photo_options(
    doc, # Docstring of the script
    sets='photo', # Default sets
    labels='4', # Default numbers of labels per class
    splits='0,1,2' # Default splits
)->argparse.ArgumentParser: # To which a script adds its own options
    "Options of the benchmarks on photographs"
    p = argparse.ArgumentParser(description=doc.splitlines()[0])
    p.add_argument('data', nargs='?')
    p.add_argument('--sets', default=sets)
    p.add_argument('--labels', default=labels)
    p.add_argument('--splits', default=splits)
    p.add_argument('--size', type=int, default=64)
    p.add_argument('--summary', action='store_true')
    return p

def each(
    values, # Values separated by commas
    kind=int # Their type
)->list:
    "The values of an option"
    return [kind(v) for v in values.split(',')]
