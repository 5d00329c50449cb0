"Results as lines of a csv file, and the options of the benchmarks on photographs"
import argparse, csv
import pandas as pd

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

def summary(
    file, # Path of a csv file that `append` wrote
    over:str, # Column whose values are pooled in the second table, such as the sets of images
    by:list, # Columns that tell the settings apart
    row='fixmatch', # Compared with …
    others=('start','supervised','both_views') # … these, on the same splits; `start` is the probe that a run starts from
):
    "Print mean, standard deviation and number of splits of each row, and how far `row` is from the others. A split that ran twice counts once"
    df = pd.read_csv(file)
    runs = df.groupby([*by, over, 'split', 'row']).accuracy.mean()
    print(runs.groupby(level=[*by, over, 'row']).agg(['mean','std','count']).round(1).to_string())
    wide = runs.unstack('row')
    if 'probe' in df: wide['start'] = df.groupby([*by, over, 'split']).probe.mean()
    gaps = pd.concat({o:wide[row]-wide[o] for o in others if o in wide}, names=['than']).dropna()
    table = gaps.groupby(level=[*by, 'than']).agg(['mean','sem','min','count',lambda g: (g<-2).sum()])
    print(f'\n{row} better than …, points\n', table.set_axis(['mean','se','least','runs','2 below'], axis=1).round(1).to_string())
