-- Finds what a worker was charged with that was silent, not dead, when it comes back: few rows among many.

create index job_attempts_crashed on job_attempts (worker_id) where class = 'crash';
