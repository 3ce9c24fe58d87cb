//! Publishing while everything dies: at every place where a worker can die, and in a storm of all outages at once.
//!
//! What happened is counted at the sandbox, which is never touched: no post may be missing there, none may be twice.

mod kill_points;
mod storm;
