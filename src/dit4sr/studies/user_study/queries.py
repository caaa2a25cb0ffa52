"""What the store asks its file."""

COMPARISONS = """
SELECT c.id, c.photo, c.competitor, c.ours, c.other, p.lq
FROM comparisons c JOIN photos p ON p.id = c.photo ORDER BY c.id
"""

# Steps that were answered, or still may be: those of volunteers who left do not count.
SHOWN = """
SELECT s.comparison, sum(s.ours_left), sum(1 - s.ours_left)
FROM steps s JOIN volunteers v ON v.id = s.volunteer LEFT JOIN answers a ON a.step = s.id
WHERE a.step IS NOT NULL OR v.seen > ? GROUP BY s.comparison
"""

NEXT = """
SELECT s.id, s.token, s.position, p.width, p.height
FROM steps s
JOIN comparisons c ON c.id = s.comparison
JOIN photos p ON p.id = c.photo
LEFT JOIN answers a ON a.step = s.id
WHERE s.volunteer = ? AND a.step IS NULL ORDER BY s.position LIMIT 1
"""

PICTURE = """
SELECT p.png FROM tokens t JOIN steps s ON s.id = t.step JOIN pictures p ON p.id = t.picture
WHERE t.token = ? AND s.volunteer = ?
"""

VOTES = """
SELECT v.code, v.joined, s.position, p.benchmark, p.stem, m.label, s.ours_left, a.realism, a.fidelity, a.answered
FROM answers a
JOIN steps s ON s.id = a.step
JOIN volunteers v ON v.id = s.volunteer
JOIN comparisons c ON c.id = s.comparison
JOIN photos p ON p.id = c.photo
LEFT JOIN methods m ON m.id = c.competitor
ORDER BY v.id, s.position
"""

PROGRESS = """
SELECT v.code, count(a.step), count(s.id)
FROM volunteers v JOIN steps s ON s.volunteer = v.id LEFT JOIN answers a ON a.step = s.id
GROUP BY v.id ORDER BY v.id
"""
