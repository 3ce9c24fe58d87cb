//! One description for a path whose calls stand in several rooms of the code (`GET` and `DELETE /api/v1/me`).
//!
//! poem-openapi writes a path once for each room: the document then has the same key twice, of which every reader keeps
//! the last, and the calls under the first are lost to clients, to the figures per route and to whoever walks it. Here
//! each call also gets what it may refuse ([`refusals`]).

use std::collections::HashMap;

use poem::{endpoint::BoxEndpoint, http::Method};
use poem_openapi::{
    OpenApi,
    registry::{MetaApi, MetaPath, Registry},
};

use super::refusals;

/// The same calls, each with what it may refuse.
#[derive(Clone)]
pub struct OneDescription<T>(pub T);

impl<T: OpenApi> OpenApi for OneDescription<T> {
    fn meta() -> Vec<MetaApi> {
        let mut paths: Vec<MetaPath> = Vec::new();
        for path in T::meta().into_iter().flat_map(|api| api.paths) {
            match paths.iter_mut().find(|known| known.path == path.path) {
                Some(known) => known.operations.extend(path.operations),
                None => paths.push(path),
            }
        }
        for MetaPath { path, operations } in &mut paths {
            operations.iter_mut().for_each(|operation| refusals::tell(path, operation));
        }
        vec![MetaApi { paths }]
    }

    fn register(registry: &mut Registry) {
        T::register(registry);
    }

    fn add_routes(self, route_table: &mut HashMap<String, HashMap<Method, BoxEndpoint<'static>>>) {
        self.0.add_routes(route_table);
    }
}
