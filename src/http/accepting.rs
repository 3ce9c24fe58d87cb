//! Lets clients in: so many at once, and not too many from one address.

use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use poem::{
    http::uri::Scheme,
    listener::Acceptor,
    web::{LocalAddr, RemoteAddr},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::sleep,
};

use super::{
    client_address::is_public,
    connection::{Connection, LIMITS, Limits},
    limits::customer,
};

/// More clients than this wait in the backlog of the system.
const MOST_CONNECTIONS: usize = 8192;
/// So that nobody outside can take all of them. More are closed at once. Proxies of ours connect from inside.
const MOST_OF_ONE_ADDRESS: usize = 1024;

/// Accepts connections that watch their own pace.
pub struct Watched {
    listener: TcpListener,
    local: LocalAddr,
    limits: Limits,
    room: Arc<Semaphore>,
    seats: Seats,
}

impl Watched {
    pub fn new(listener: TcpListener) -> io::Result<Self> {
        Self::with(listener, LIMITS)
    }

    pub(super) fn with(listener: TcpListener, limits: Limits) -> io::Result<Self> {
        let local = LocalAddr(listener.local_addr()?.into());
        Ok(Self { listener, local, limits, room: Arc::new(Semaphore::new(MOST_CONNECTIONS)), seats: Seats::default() })
    }
}

/// What a connection takes up until it ends.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) _permit: OwnedSemaphorePermit,
    pub(super) _seat: Seat,
}

/// How many connections each customer outside has: an IPv4 address, or the /64 of an IPv6 address.
#[derive(Debug, Clone, Default)]
pub(super) struct Seats(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// A connection's seat; free again when it ends.
#[derive(Debug)]
pub(super) struct Seat {
    seats: Seats,
    address: Option<IpAddr>,
}

impl Seats {
    /// `None`: the address has as many as it may.
    pub(super) fn take(&self, address: IpAddr) -> Option<Seat> {
        let address = address.to_canonical();
        if !is_public(address) {
            return Some(Seat { seats: self.clone(), address: None });
        }
        let address = customer(address);
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_this = taken.entry(address).or_default();
        if *of_this >= MOST_OF_ONE_ADDRESS {
            return None;
        }
        *of_this += 1;
        Some(Seat { seats: self.clone(), address: Some(address) })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let Some(address) = self.address else { return };
        let mut taken = self.seats.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_this) = taken.get_mut(&address) {
            *of_this -= 1;
            if *of_this == 0 {
                taken.remove(&address);
            }
        }
    }
}

impl Acceptor for Watched {
    type Io = Connection<TcpStream>;

    fn local_addr(&self) -> Vec<LocalAddr> {
        vec![self.local.clone()]
    }

    async fn accept(&mut self) -> io::Result<(Self::Io, LocalAddr, RemoteAddr, Scheme)> {
        let room = Arc::clone(&self.room).acquire_owned().await.expect("the semaphore is never closed");
        let (stream, peer, seat) = loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    if let Some(seat) = self.seats.take(peer.ip()) {
                        break (stream, peer, seat);
                    }
                }
                Err(error) => {
                    // Out of file descriptors, most likely: without a pause this would spin.
                    tracing::warn!(%error, "a connection could not be accepted");
                    sleep(Duration::from_millis(50)).await;
                    return Err(error);
                }
            }
        };
        stream.set_nodelay(true)?;
        let connection = Connection::new(stream, self.limits, Some(Place { _permit: room, _seat: seat }));
        Ok((connection, self.local.clone(), RemoteAddr(peer.into()), Scheme::HTTP))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_outside_takes_all_places_and_a_place_is_free_again_when_its_connection_ends() {
        let (seats, one, other): (_, IpAddr, IpAddr) =
            (Seats::default(), [203, 0, 113, 1].into(), [203, 0, 113, 2].into());
        let mut taken: Vec<_> = (0..MOST_OF_ONE_ADDRESS).map(|_| seats.take(one).unwrap()).collect();
        assert!(seats.take(one).is_none());
        assert!(seats.take(other).is_some());
        taken.pop();
        assert!(seats.take(one).is_some());
        drop(taken);
        assert!(seats.0.lock().unwrap().is_empty(), "what is over is forgotten");
        let proxied: Vec<_> = (0..2 * MOST_OF_ONE_ADDRESS).filter_map(|_| seats.take([10, 0, 0, 1].into())).collect();
        assert_eq!(proxied.len(), 2 * MOST_OF_ONE_ADDRESS, "a proxy of ours brings everybody");
    }

    #[test]
    fn one_customers_addresses_have_their_places_together() {
        let seats = Seats::default();
        let of = |network: u128, host: u128| IpAddr::V6(((0x2001_4860 << 96) | (network << 64) | host).into());
        let taken: Vec<_> = (0..2 * MOST_OF_ONE_ADDRESS).filter_map(|host| seats.take(of(1, host as u128))).collect();
        assert_eq!(taken.len(), MOST_OF_ONE_ADDRESS);
        assert!(seats.take(of(2, 1)).is_some());
    }
}
