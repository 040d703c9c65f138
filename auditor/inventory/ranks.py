"""What a rule finds, as numbers by how bad it is; its tables hold these."""

COMPLIANT, EXCEPTED, UNPARSEABLE, VIOLATED, NOT_SEEN, SEEN, UNSAMPLED = range(7)
"""Ranks of a verdict: of a device's modules the highest of the first four is the device's. ``NOT_SEEN`` failed or is
pending, ``UNSAMPLED`` was not drawn into a sample. ``SEEN`` is none, but how many devices a rule is about that
answered."""

ANSWERED = "status IN ('ok', 'empty')"
UNANSWERED = "status IN ('failed', 'pending')"
"""Devices that rules judge, and those that they would."""

RANKS_BY_VERSIONS = f"""SELECT r.line, max(CASE WHEN x.line IS NULL THEN rank ELSE {EXCEPTED} END) AS rank
  FROM reported r JOIN (FROM picked WHERE rule = $1) p USING (combo)
  LEFT JOIN (FROM excused WHERE rule = $1) x ON x.line = r.line AND x.row = r.row GROUP BY r.line"""
RANKS_BY_ANSWERS = f"""SELECT line, coalesce(f.rank, CASE WHEN s.line IS NULL THEN {COMPLIANT} ELSE {EXCEPTED} END)
  AS rank FROM asked a SEMI JOIN (FROM scope WHERE rule = $1) USING (product)
  LEFT JOIN (FROM found WHERE rule = $1) f USING (line) LEFT JOIN (FROM spared WHERE rule = $1) s USING (line)
  WHERE {ANSWERED}"""
"""The rank of each device that a rule judges: of one about versions, and of one about whole devices."""
