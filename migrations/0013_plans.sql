-- How much each workspace may do, and by whose word; memberships on Patreon that give plans; a limit for each key.

alter table api_keys
    -- Requests per window of the rate limits; null: only what limits its maker.
    add column rate_limit integer constraint api_keys_rate_limit_positive check (rate_limit > 0);
