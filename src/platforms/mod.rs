//! One file per platform behind one trait; this folder never touches the database.

pub mod platform;

pub use platform::Platform;
