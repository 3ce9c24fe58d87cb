//! Listens, answers, and stops without cutting anyone off.

use std::{io, time::Duration};

use poem::{IntoEndpoint, Server};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::accepting::Watched;

/// How long calls in flight may go on once stopping has begun.
pub const GRACE: Duration = Duration::from_secs(20);

/// Serves until `stop` is cancelled, then lets what is in flight finish within [`GRACE`]. Event streams end by
/// themselves at once, as they listen to the same token.
pub async fn serve<E>(listener: TcpListener, routes: E, stop: CancellationToken) -> io::Result<()>
where
    E: IntoEndpoint,
    E::Endpoint: 'static,
{
    Server::new_with_acceptor(Watched::new(listener)?)
        .name("api")
        .run_with_graceful_shutdown(routes, stop.cancelled_owned(), Some(GRACE))
        .await
}
