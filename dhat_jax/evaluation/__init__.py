"""Networks under attack: evaluator, attacks, records, results, audit."""
