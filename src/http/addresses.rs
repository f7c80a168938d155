//! How many connections each client's address has at present.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use parking_lot::Mutex;

/// What counts as one client: an IPv4 address, or the /64 of an IPv6 address, which is what one subscriber has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Address {
    V4([u8; 4]),
    V6([u8; 8]),
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        // An IPv4 client at a socket that takes both is written as `::ffff:192.0.2.1`.
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address.octets()),
            IpAddr::V6(address) => {
                let [a, b, c, d, e, f, g, h, ..] = Ipv6Addr::octets(&address);
                Self::V6([a, b, c, d, e, f, g, h])
            }
        }
    }
}

/// Whose connection counts: the one at its other end.
pub fn of(peer: SocketAddr) -> Address {
    peer.ip().into()
}

/// The open connections of each address, over all workers.
#[derive(Debug, Clone, Default)]
pub struct Addresses(Arc<Mutex<HashMap<Address, usize>>>);

impl Addresses {
    /// Counts a connection until the place is dropped. `None` where the address has as many as it may already; 0 is any number.
    pub fn enter(&self, address: Address, most: usize) -> Option<Place> {
        let mut open = self.0.lock();
        let count = open.entry(address).or_default();
        // (It has at least one then, so no empty entry is left.)
        if most > 0 && *count >= most {
            return None;
        }
        *count += 1;
        Some(Place { of: self.clone(), address })
    }
}

/// One connection of an address.
#[derive(Debug)]
pub struct Place {
    of: Addresses,
    address: Address,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.of.0.lock();
        if let Some(count) = open.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.address);
            }
        }
        // After a wave of addresses the room for them is given back.
        if open.len() < open.capacity() / 8 {
            open.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn an_ipv6_network_of_64_bits_is_one_client_and_a_mapped_address_is_ipv4() {
        assert_eq!(address("2001:db8:1:2::1"), address("2001:db8:1:2:ffff:ffff:ffff:ffff"));
        assert_ne!(address("2001:db8:1:2::1"), address("2001:db8:1:3::1"));
        assert_eq!(address("::ffff:192.0.2.1"), address("192.0.2.1"));
        assert_ne!(address("192.0.2.1"), address("192.0.2.2"));
        assert_ne!(address("::"), address("0.0.0.0"));
    }

    #[test]
    fn an_address_has_so_many_places_and_gets_them_back() {
        let addresses = Addresses::default();
        let (a, b) = (address("192.0.2.1"), address("2001:db8::1"));
        let first = addresses.enter(a, 2).unwrap();
        let second = addresses.enter(a, 2).unwrap();
        assert!(addresses.enter(a, 2).is_none(), "it has two");
        let other = addresses.enter(b, 2).unwrap();
        drop(first);
        let third = addresses.enter(a, 2).unwrap();
        assert!(addresses.enter(a, 1).is_none(), "a smaller limit holds at once");
        let fourth = addresses.enter(a, 0).unwrap();
        drop((second, third, fourth, other));
        assert!(addresses.0.lock().is_empty(), "nothing is remembered of who has gone");
    }
}
