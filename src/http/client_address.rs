//! Where a request comes from. Proxies are believed by configuration alone: `TRUSTED_PROXIES` says how many of ours a
//! request passes, `TRUSTED_PROXY_NETWORKS` where the last of them connects from, and each of them notes in one header
//! whom it heard it from. What a client writes into that header itself stands further left than what our proxies add,
//! and is never looked at; nor is anything that comes past our proxies.

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use poem::{
    Request,
    http::{HeaderMap, HeaderName},
};

use crate::config::ApiConfig;

/// How to find out.
#[derive(Debug, Clone)]
pub struct Proxies {
    hops: u8,
    /// Where the last of them connects from; none named: from this machine or a private network.
    networks: Vec<Network>,
    header: HeaderName,
}

/// Addresses that begin alike, as `10.0.0.0/8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    first: IpAddr,
    prefix_bits: u8,
}

/// It is no network, or bits are set beyond its prefix: then it is not certain what is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a network")]
pub struct NoNetwork;

impl FromStr for Network {
    type Err = NoNetwork;

    fn from_str(text: &str) -> Result<Self, NoNetwork> {
        let (first, prefix) = text.split_once('/').map_or((text, None), |(first, prefix)| (first, Some(prefix)));
        let first: IpAddr = first.parse().map_err(|_error| NoNetwork)?;
        let width = width(first);
        let prefix_bits = prefix.map_or(Ok(width), str::parse).map_err(|_error| NoNetwork)?;
        let network = Self { first, prefix_bits };
        let is_whole = prefix_bits <= width && bits(first) == bits(first) & network.mask();
        if is_whole { Ok(network) } else { Err(NoNetwork) }
    }
}

impl Network {
    pub fn contains(self, ip: IpAddr) -> bool {
        self.first.is_ipv4() == ip.is_ipv4() && bits(ip) & self.mask() == bits(self.first)
    }

    fn mask(self) -> u128 {
        let others = width(self.first) - self.prefix_bits.min(width(self.first));
        u128::MAX.checked_shl(others.into()).unwrap_or(0)
    }
}

fn width(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

fn bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
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
        Self {
            hops: config.trusted_proxies,
            networks: config.proxy_networks.clone(),
            header: header.unwrap_or(HeaderName::from_static("x-forwarded-for")),
        }
    }

    pub fn client(&self, request: &Request) -> ClientAddress {
        let peer = request.remote_addr().as_socket_addr().map(SocketAddr::ip);
        self.behind(peer.unwrap_or(std::net::Ipv4Addr::UNSPECIFIED.into()).to_canonical(), request.headers())
    }

    /// Who is behind whoever connected.
    fn behind(&self, peer: IpAddr, headers: &HeaderMap) -> ClientAddress {
        // What comes past our proxies says of itself what it likes.
        let hops = if self.is_proxy(peer) { self.hops } else { 0 };
        let behind = hops.checked_sub(1).map(|passed| self.noted(headers, passed));
        match behind {
            // What connects from inside of a private network is a proxy, or one of our own machines.
            None => ClientAddress { ip: peer, is_own: is_public(peer) },
            Some(Some(ip)) => ClientAddress { ip, is_own: true },
            // It did not come the way that all clients come.
            Some(None) => ClientAddress { ip: peer, is_own: false },
        }
    }

    fn is_proxy(&self, peer: IpAddr) -> bool {
        match self.networks.as_slice() {
            [] => !is_public(peer),
            named => named.iter().any(|network| network.contains(peer)),
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

    const PROXY: &str = "10.0.0.9";

    fn client(hops: u8, header: &'static str, notes: &[&str]) -> ClientAddress {
        from(PROXY, &[], hops, header, notes)
    }

    fn from(peer: &str, networks: &[&str], hops: u8, header: &'static str, notes: &[&str]) -> ClientAddress {
        let mut headers = HeaderMap::new();
        for note in notes {
            headers.append("x-forwarded-for", note.parse().unwrap());
        }
        let networks = networks.iter().map(|network| network.parse().unwrap()).collect();
        let proxies = Proxies { hops, networks, header: HeaderName::from_static(header) };
        proxies.behind(peer.parse().unwrap(), &headers)
    }

    fn ip(hops: u8, notes: &[&str]) -> String {
        client(hops, "x-forwarded-for", notes).ip.to_string()
    }

    #[test]
    fn whoever_comes_past_our_proxies_is_only_believed_where_he_connects_from() {
        let from = |peer, networks: &[&str]| {
            let client = from(peer, networks, 1, "x-forwarded-for", &["198.51.100.1"]);
            (client.ip.to_string(), client.is_own)
        };
        let said = ("198.51.100.1".to_owned(), true);
        for peer in ["127.0.0.1", "::1", "10.1.2.3", "192.168.1.1", "172.16.0.1", "100.64.0.1", "fd00::1"] {
            assert_eq!(from(peer, &[]), said, "{peer}");
        }
        for peer in ["203.0.113.9", "2001:db8::9"] {
            assert_eq!(from(peer, &[]), (peer.to_owned(), true), "past them");
        }
        // Named, it is those alone.
        let ours = ["203.0.113.0/29", "2001:db8::/32", "192.0.2.7"];
        for peer in ["203.0.113.7", "2001:db8:ffff::9", "192.0.2.7"] {
            assert_eq!(from(peer, &ours), said, "{peer}");
        }
        for (peer, is_own) in [("203.0.113.8", true), ("2001:db9::9", true), ("192.0.2.8", true), ("10.0.0.1", false)] {
            assert_eq!(from(peer, &ours), (peer.to_owned(), is_own));
        }
    }

    #[test]
    fn a_network_is_written_as_people_write_it() {
        for text in ["10.0.0.0/8", "0.0.0.0/0", "::/0", "192.0.2.7", "192.0.2.7/32", "2001:db8::1/128", "fc00::/7"] {
            assert!(text.parse::<Network>().is_ok(), "{text}");
        }
        for text in ["", "10.0.0.1/8", "10.0.0.0/33", "10.0.0.0/", "10.0.0.0/-1", "10.0.0/8", "::/129", "example.com"] {
            assert_eq!(text.parse::<Network>(), Err(NoNetwork), "{text}");
        }
    }

    #[test]
    fn what_a_client_says_of_itself_is_not_believed() {
        assert_eq!(ip(0, &["198.51.100.1"]), PROXY);
        assert_eq!(ip(1, &["127.0.0.1, 10.0.0.1, 198.51.100.1"]), "198.51.100.1");
        assert_eq!(ip(1, &["127.0.0.1", "198.51.100.1"]), "198.51.100.1", "in a header of its own");
        assert_eq!(ip(2, &["127.0.0.1, 198.51.100.1, 192.0.2.7"]), "198.51.100.1");
        assert_eq!(client(1, "cf-connecting-ip", &["198.51.100.1"]).ip.to_string(), PROXY);
    }

    #[test]
    fn a_request_that_came_another_way_is_nobodys_own() {
        for notes in [&[][..], &[""], &["unknown"], &["198.51.100.1, nonsense"], &["\u{e9}"]] {
            let client = client(1, "x-forwarded-for", notes);
            assert_eq!((client.ip.to_string().as_str(), client.is_own), (PROXY, false), "{notes:?}");
        }
        assert_eq!(ip(3, &["198.51.100.1, 192.0.2.7"]), PROXY, "one proxy was left out");
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
