//! Where a request comes from. Proxies are believed by configuration alone: `TRUSTED_PROXIES` says how many of ours a
//! request passes, and each of them notes in one header whom it heard it from. What a client writes into that header
//! itself stands further left than what our proxies add, and is never looked at.

use std::net::{IpAddr, SocketAddr};

use poem::{
    Request,
    http::{HeaderMap, HeaderName},
};

use crate::config::ApiConfig;

/// How to find out.
#[derive(Debug, Clone)]
pub struct Proxies {
    hops: u8,
    header: HeaderName,
}

/// Where a request comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientAddress {
    pub ip: IpAddr,
    /// Whether it is one client's own, as against that of a proxy which nobody told us of.
    pub is_own: bool,
}

impl Proxies {
    pub fn new(config: &ApiConfig) -> Self {
        let header = HeaderName::try_from(config.proxy_header.as_str());
        // Settings that were loaded hold the name of a header.
        Self { hops: config.trusted_proxies, header: header.unwrap_or(HeaderName::from_static("x-forwarded-for")) }
    }

    pub fn client(&self, request: &Request) -> ClientAddress {
        let peer = request.remote_addr().as_socket_addr().map(SocketAddr::ip);
        self.behind(peer.unwrap_or(std::net::Ipv4Addr::UNSPECIFIED.into()).to_canonical(), request.headers())
    }

    /// Who is behind whoever connected.
    fn behind(&self, peer: IpAddr, headers: &HeaderMap) -> ClientAddress {
        let behind = self.hops.checked_sub(1).map(|passed| self.noted(headers, passed));
        match behind {
            // What connects from inside of a private network is a proxy, or one of our own machines.
            None => ClientAddress { ip: peer, is_own: is_public(peer) },
            Some(Some(ip)) => ClientAddress { ip, is_own: true },
            // It did not come the way that all clients come.
            Some(None) => ClientAddress { ip: peer, is_own: false },
        }
    }

    /// Whom the proxy heard it from that is so many before the last.
    fn noted(&self, headers: &HeaderMap, passed: u8) -> Option<IpAddr> {
        let values = headers.get_all(&self.header).iter().rev();
        let mut notes = values.flat_map(|value| value.to_str().unwrap_or_default().rsplit(','));
        address(notes.nth(passed.into())?.trim())
    }
}

/// Some proxies add the port.
fn address(text: &str) -> Option<IpAddr> {
    let ip = text.parse().or_else(|_| text.parse().map(|address: SocketAddr| address.ip()));
    ip.or_else(|_| text.trim_start_matches('[').trim_end_matches(']').parse()).ok().map(|ip: IpAddr| ip.to_canonical())
}

/// Whether an address can be of somebody outside.
pub fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => {
            let is_shared = v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64;
            !(v4.is_loopback() || v4.is_private() || v4.is_link_local() || v4.is_unspecified() || is_shared)
        }
        IpAddr::V6(v6) => {
            !(v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local() || v6.is_unspecified())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(hops: u8, header: &'static str, notes: &[&str]) -> ClientAddress {
        let mut headers = HeaderMap::new();
        for note in notes {
            headers.append("x-forwarded-for", note.parse().unwrap());
        }
        Proxies { hops, header: HeaderName::from_static(header) }.behind([203, 0, 113, 9].into(), &headers)
    }

    fn ip(hops: u8, notes: &[&str]) -> String {
        client(hops, "x-forwarded-for", notes).ip.to_string()
    }

    #[test]
    fn what_a_client_says_of_itself_is_not_believed() {
        assert_eq!(ip(0, &["198.51.100.1"]), "203.0.113.9");
        assert_eq!(ip(1, &["127.0.0.1, 10.0.0.1, 198.51.100.1"]), "198.51.100.1");
        assert_eq!(ip(1, &["127.0.0.1", "198.51.100.1"]), "198.51.100.1", "in a header of its own");
        assert_eq!(ip(2, &["127.0.0.1, 198.51.100.1, 192.0.2.7"]), "198.51.100.1");
        assert_eq!(client(1, "cf-connecting-ip", &["198.51.100.1"]).ip.to_string(), "203.0.113.9");
    }

    #[test]
    fn a_request_that_came_another_way_is_nobodys_own() {
        for notes in [&[][..], &[""], &["unknown"], &["198.51.100.1, nonsense"], &["\u{e9}"]] {
            let client = client(1, "x-forwarded-for", notes);
            assert_eq!((client.ip.to_string().as_str(), client.is_own), ("203.0.113.9", false), "{notes:?}");
        }
        assert_eq!(ip(3, &["198.51.100.1, 192.0.2.7"]), "203.0.113.9", "one proxy was left out");
    }

    #[test]
    fn addresses_are_read_in_every_form_that_proxies_write() {
        for (note, expected) in [
            ("198.51.100.1:4711", "198.51.100.1"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:db8::1]:4711", "2001:db8::1"),
            ("::ffff:198.51.100.1", "198.51.100.1"),
        ] {
            assert_eq!(ip(1, &[note]), expected, "{note}");
        }
    }

    #[test]
    fn only_somebody_outside_is_counted_by_where_he_connects_from() {
        for (ip, expected) in [
            ("203.0.113.9", true),
            ("2001:db8::1", true),
            ("127.0.0.1", false),
            ("10.1.2.3", false),
            ("100.64.0.1", false),
            ("::1", false),
            ("fd00::1", false),
        ] {
            assert_eq!(is_public(ip.parse().unwrap()), expected, "{ip}");
        }
    }
}
