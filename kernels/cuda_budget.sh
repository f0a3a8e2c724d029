#!/bin/sh
# cuda_budget.sh LOG: what ptxas said of the kernels, held against a budget: nothing spilled, and so few registers that two
# blocks of 256 threads fit a multiprocessor (65,536 registers).
awk '
/Compiling entry function/ { split($0, quoted, "\047"); kernel = quoted[2] " for " quoted[4] }
/bytes spill stores/ && $5 + $9 > 0 { print "cuda: " kernel " spills registers: " $0; failed = 1 }
/Used [0-9]+ registers/ { for (i = 1; i < NF; i++) if ($i == "Used") used = $(i + 1); kernels++
                          if (used > 128) { print "cuda: " kernel " uses " used " registers, 128 are its budget"; failed = 1 } }
END { if (kernels == 0) { print "cuda: ptxas said nothing of registers"; failed = 1 } exit failed }' "$1"
