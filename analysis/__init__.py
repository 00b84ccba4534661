"""From run folders to tables, laws, fits, throughput, plots and reports. Imports no trainer."""
