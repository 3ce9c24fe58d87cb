//! Media: uploads, probes, plans, renditions. ffmpeg is kept at arm's length.
//!
//! In reading order: [`sniff`] tells what a file is; [`probe`] and [`boxes`] what is in it; [`preset`] what a
//! platform takes; [`plan`] what has to be done; [`encode`] and [`still`] how that is said to ffmpeg; [`ffmpeg`]
//! runs it and [`exit`] reads its end; [`render`] goes from plan to proof; [`proof`] and [`packets`] show that the
//! result is what was promised.
//!
//! A file from outside is never opened by anything but ffmpeg with its demuxer pinned, and never by a name that
//! its owner chose.

pub mod admission;
pub mod api;
mod api_form;
mod api_views;
pub mod boxes;
pub mod encode;
pub mod exit;
pub mod ffmpeg;
pub mod health;
pub mod import;
pub mod import_api;
pub mod import_store;
pub mod intake;
pub mod packets;
pub mod plan;
mod plan_still;
pub mod preset;
pub mod probe;
pub mod progress;
pub mod proof;
mod range;
pub mod render;
pub mod rendition_store;
pub mod scratch;
pub mod service;
pub mod sniff;
pub mod still;
pub mod storage;
pub mod store;
pub mod transcode;
pub mod upkeep;
pub mod upload;

pub use api::MediaApi;
pub use import::Import;
pub use import_api::ImportApi;
pub use preset::PresetName;
pub use service::MediaService;
pub use transcode::Transcode;
pub use upkeep::MediaUpkeep;
