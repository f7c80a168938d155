//! The sockets of an address.

use std::{
    io,
    net::{SocketAddr, TcpListener, ToSocketAddrs},
};

use rustix::io::Errno;

/// Binds each address that `listen` has: `localhost` has two, and clients try either. Those that this machine lacks
/// (IPv6 is off) are passed over, as long as there is one. With port 0 all get the first one's.
///
/// # Errors
/// None can be bound, or one is taken; the message names it.
pub fn bind(listen: &str) -> io::Result<Vec<TcpListener>> {
    bind_all(listen, listen.to_socket_addrs()?)
}

fn bind_all(listen: &str, addresses: impl Iterator<Item = SocketAddr>) -> io::Result<Vec<TcpListener>> {
    let (mut sockets, mut bound, mut lacking) = (Vec::<TcpListener>::new(), Vec::new(), None);
    for mut address in addresses {
        if let Some(first) = sockets.first().filter(|_| address.port() == 0) {
            address.set_port(first.local_addr()?.port());
        }
        // A name may have the same address twice.
        if bound.contains(&address) {
            continue;
        }
        match TcpListener::bind(address) {
            Ok(socket) => {
                bound.push(socket.local_addr()?);
                sockets.push(socket);
            }
            Err(error) if is_lacking(&error) => lacking = Some(error),
            Err(error) if address.to_string() == listen => return Err(error),
            Err(error) => return Err(io::Error::new(error.kind(), format!("{error} ({address})"))),
        }
    }
    match lacking {
        Some(error) if sockets.is_empty() => Err(error),
        None if sockets.is_empty() => Err(io::ErrorKind::AddrNotAvailable.into()),
        _ => Ok(sockets),
    }
}

fn is_lacking(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable || Errno::from_io_error(error) == Some(Errno::AFNOSUPPORT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind_at(ips: &[&str], port: u16) -> io::Result<Vec<SocketAddr>> {
        let addresses = ips.iter().map(|ip| SocketAddr::new(ip.parse().unwrap(), port));
        let sockets = bind_all(&format!("name:{port}"), addresses)?;
        sockets.iter().map(TcpListener::local_addr).collect()
    }

    #[test]
    fn a_name_is_bound_at_each_of_its_addresses_at_one_port() {
        // Of TEST-NET-1 this machine has none, and it may have no IPv6.
        let sockets = bind_all(
            "name:0",
            ["192.0.2.1:0", "127.0.0.1:0", "[::1]:0", "127.0.0.2:0", "127.0.0.1:0"]
                .map(|it| it.parse().unwrap())
                .into_iter(),
        )
        .unwrap();
        let bound: Vec<SocketAddr> = sockets.iter().map(|socket| socket.local_addr().unwrap()).collect();
        let port = bound[0].port();
        assert!(bound.iter().all(|address| address.port() == port), "{bound:?}");
        let mut expected = vec!["127.0.0.1", "127.0.0.2"];
        if TcpListener::bind("[::1]:0").is_ok() {
            expected.insert(1, "::1");
        }
        assert_eq!(bound.iter().map(|address| address.ip().to_string()).collect::<Vec<_>>(), expected);
        let taken = bind_at(&["127.0.0.3", "127.0.0.2"], port).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        assert!(taken.to_string().contains(&format!("127.0.0.2:{port}")), "{taken}");
        assert_eq!(bind_at(&["192.0.2.1"], 0).unwrap_err().kind(), io::ErrorKind::AddrNotAvailable);
    }

    #[test]
    fn an_address_is_bound_as_it_stands() {
        let socket = &bind("127.0.0.1:0").unwrap()[0];
        let taken = bind(&socket.local_addr().unwrap().to_string()).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        assert!(bind("localhost:0").is_ok());
    }
}
