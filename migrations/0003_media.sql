-- Media: stored bytes, the uploads that are made of them, who uses an upload, and what was made from it.

-- One stored object. Equal content is stored once *per tenant*: shared across tenants, the time an upload takes
-- would tell whether somebody else has the same file.
--
-- The row is written before the first byte, so an object without a row cannot exist: what a crash leaves behind is
-- found here and not by listing the store. The key holds this row's id and not the hash: a key is never used
-- twice, so removing one object can never hit a newer upload of the same content (M1), and no store has to rename
-- what is larger than it can copy.
create table media_objects (
    id uuid not null,
    tenant_id uuid not null,
    storage_key text not null,
    -- arriving -> kept -> condemned -> removing -> (row gone); condemned -> kept when the content comes back.
    state text not null default 'arriving',
    sha256 bytea,
    size_bytes bigint,
    mime text,
    created_at timestamptz not null default now(),
    -- Since when nothing uses it, or since when it is being removed.
    condemned_at timestamptz,
    constraint media_objects_pkey primary key (id),
    constraint media_objects_storage_key_key unique (storage_key),
    constraint media_objects_state_check check (state in ('arriving', 'kept', 'condemned', 'removing')),
    constraint media_objects_known_check
        check (state in ('arriving', 'removing') or (sha256 is not null and size_bytes is not null and mime is not null)),
    constraint media_objects_sha256_check check (octet_length(sha256) = 32),
    constraint media_objects_condemned_check check ((condemned_at is not null) = (state in ('condemned', 'removing')))
);

-- The one live object of a tenant with this content.
create unique index media_objects_content_key on media_objects (tenant_id, sha256) where state in ('kept', 'condemned');
-- What upkeep looks for.
create index media_objects_upkeep_idx on media_objects (coalesce(condemned_at, created_at)) where state <> 'kept';

-- An upload, as its owner sees it.
create table media (
    id uuid not null,
    tenant_id uuid not null,
    object_id uuid not null,
    name text not null,
    kind text not null,
    probe jsonb not null,
    created_at timestamptz not null default now(),
    deleted_at timestamptz,
    constraint media_pkey primary key (id),
    constraint media_object_id_fkey foreign key (object_id) references media_objects (id) on delete restrict,
    constraint media_name_check check (length(name) between 1 and 255)
);

create index media_object_id_idx on media (object_id);
-- The list, newest first: ids made later sort later.
create index media_list_idx on media (tenant_id, id desc) where deleted_at is null;

-- Who uses an upload, such as a post. Taken in the transaction of whoever uses it; while there is one the upload
-- cannot be deleted (M1).
create table media_references (
    media_id uuid not null,
    holder_kind text not null,
    holder_id uuid not null,
    created_at timestamptz not null default now(),
    constraint media_references_pkey primary key (media_id, holder_kind, holder_id),
    constraint media_references_media_id_fkey foreign key (media_id) references media (id) on delete restrict
);

create index media_references_holder_idx on media_references (holder_kind, holder_id);

-- What was made from content for a preset. Named by (content, preset, version) and therefore shared by all uploads
-- of the same content of a tenant, and made once.
create table renditions (
    id uuid not null,
    tenant_id uuid not null,
    source_id uuid not null,
    preset text not null,
    preset_version integer not null,
    -- wanted -> ready | refused. A refusal is an answer too: the same file is not tried twice for the same preset.
    state text not null default 'wanted',
    -- Who is making it: the fence of its job's run, and until when others leave it alone.
    maker_job uuid,
    maker_run integer,
    maker_until timestamptz,
    object_id uuid,
    action text,
    probe jsonb,
    proof jsonb,
    notes jsonb not null default '[]',
    refusal text,
    created_at timestamptz not null default now(),
    finished_at timestamptz,
    constraint renditions_pkey primary key (id),
    constraint renditions_identity_key unique (source_id, preset, preset_version),
    constraint renditions_source_id_fkey foreign key (source_id) references media_objects (id) on delete restrict,
    constraint renditions_object_id_fkey foreign key (object_id) references media_objects (id) on delete restrict,
    constraint renditions_state_check check (state in ('wanted', 'ready', 'refused')),
    constraint renditions_ready_check
        check ((state = 'ready') = (object_id is not null and proof is not null and action is not null)),
    constraint renditions_refused_check check ((state = 'refused') = (refusal is not null)),
    constraint renditions_finished_check check ((state = 'wanted') = (finished_at is null))
);

create index renditions_object_id_idx on renditions (object_id);
