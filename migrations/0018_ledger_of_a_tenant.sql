-- What is scheduled in serial orders is also found by its tenant: an end of a workspace looks for what is open of it
-- (src/jobs/ledger/leaving.rs). The same index with one more column, and none more to keep.
drop index jobs_serial_scheduled;
create index jobs_serial_scheduled on jobs (queue, lane, tenant_id) where state = 'scheduled' and serial_key is not null;
