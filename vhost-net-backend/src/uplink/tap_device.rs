//! The kernel's side of a tap uplink: the device, its addresses, and the routes to the guests behind it.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::Context;
use futures::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags};
use rtnetlink::packet_route::route::{RouteMessage, RouteProtocol};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};
use topology::Mac;

use crate::sys;

/// The routing protocol number that marks our routes (rtnetlink(7): above 4 are free for user space).
const PROTOCOL: u8 = 201;

/// What the operator asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TapConfig {
    /// Interface name.
    pub device: String,
    /// The kernel's own addresses on it.
    pub addresses: Vec<IpNet>,
    /// Subnets of guests, routed to it.
    pub serves: Vec<IpNet>,
    /// Bytes of layer 3.
    pub mtu: u16,
    /// One queue for each worker.
    pub queues: usize,
}

/// An open tap.
#[derive(Debug)]
pub struct TapDevice {
    /// The kernel's MAC on it: where frames for the uplink are addressed.
    pub mac: Mac,
    /// One for each worker.
    pub queues: Vec<OwnedFd>,
}

/// Opens the device (creating it if it is not there), sets MTU, addresses and routes, and brings it up.
///
/// # Errors
/// What the kernel refused, with the device's name.
pub fn open(config: &TapConfig) -> anyhow::Result<TapDevice> {
    let device = &config.device;
    let queue = |_| sys::open_tap(device, config.queues);
    let queues: io::Result<Vec<_>> = (0..config.queues).map(queue).collect();
    let queues = queues.with_context(|| {
        format!("cannot open the tap {device}: it takes root or CAP_NET_ADMIN, and a device that nobody else holds")
    })?;
    restore(config)?;
    let (mac, _) = sys::interface(device).with_context(|| format!("cannot read the MAC of {device}"))?;
    Ok(TapDevice { mac, queues })
}

/// Goes on with the queues that the last daemon had, if they are of this device and as many as are wanted.
///
/// # Errors
/// They are not, or what the kernel refused.
pub fn adopt(config: &TapConfig, queues: Vec<OwnedFd>) -> anyhow::Result<TapDevice> {
    let device = &config.device;
    anyhow::ensure!(queues.len() == config.queues, "{} queues, not {}", queues.len(), config.queues);
    for queue in &queues {
        let found = sys::tap_name(queue.as_fd())?;
        anyhow::ensure!(found == *device, "a queue of {found:?}");
    }
    restore(config)?;
    let (mac, _) = sys::interface(device).with_context(|| format!("cannot read the MAC of {device}"))?;
    Ok(TapDevice { mac, queues })
}

/// Sets MTU, addresses and routes, and brings the device up; what is there already stays.
///
/// # Errors
/// What the kernel refused, with the device's name.
pub fn restore(config: &TapConfig) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(configure(config)).with_context(|| format!("cannot configure the tap {}", config.device))
}

/// The same for those that are up, in this order. The kernel takes more off a device than it is told to (with an address,
/// those of its subnet that came later; with the last one, all routes), and has a route to each subnet once: of two taps
/// that serve the same addresses the last one here has it.
pub fn restore_all<'a>(configs: impl IntoIterator<Item = &'a TapConfig>) {
    // One that is down, or gone, is made whole again by its keeper.
    for config in configs.into_iter().filter(|config| sys::interface(&config.device).is_ok_and(|(_, up)| up))
    {
        if let Err(error) = restore(config) {
            let error = format!("{error:#}");
            tracing::warn!(device = config.device, error, "the uplink has not all that it needs");
        }
    }
}

async fn configure(config: &TapConfig) -> anyhow::Result<()> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    tokio::spawn(connection);
    let link = handle.link().get().match_name(config.device.clone()).execute().try_next().await?;
    let index = link.context("it is gone again")?.header.index;
    let change = LinkUnspec::new_with_index(index).mtu(u32::from(config.mtu)).up().build();
    handle.link().change(change).execute().await.context("cannot set its MTU and bring it up")?;
    for address in &config.addresses {
        add_address(&handle, index, *address)
            .await
            .with_context(|| format!("cannot add the address {address}"))?;
    }
    for subnet in &config.serves {
        add_route(&handle, index, *subnet)
            .await
            .with_context(|| format!("cannot add the route to {subnet}"))?;
    }
    Ok(())
}

async fn add_address(handle: &Handle, index: u32, address: IpNet) -> anyhow::Result<()> {
    let mut request = handle.address().add(index, address.addr(), address.prefix_len()).replace();
    // The topology file says whose address it is: nobody else on this link can have it.
    request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
    request
        .message_mut()
        .attributes
        .push(AddressAttribute::Flags(rtnetlink::packet_route::address::AddressFlags::Nodad));
    Ok(request.execute().await?)
}

async fn add_route(handle: &Handle, index: u32, subnet: IpNet) -> anyhow::Result<()> {
    Ok(handle.route().add(route(index, subnet)?).replace().execute().await?)
}

fn route(index: u32, subnet: IpNet) -> anyhow::Result<RouteMessage> {
    let route = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(subnet.network(), subnet.prefix_len())?
        .output_interface(index)
        .protocol(RouteProtocol::Other(PROTOCOL));
    Ok(route.build())
}

/// Takes our routes off a device that stays when we go; errors do not matter any more.
pub fn close(config: &TapConfig) {
    take_off(&config.device, &[], &config.serves);
}

/// Takes off the device what `old` had and `new` has not; errors do not matter any more.
pub fn withdraw(old: &TapConfig, new: &TapConfig) {
    let missing = |had: &[IpNet], has: &[IpNet]| -> Vec<IpNet> {
        let has: HashSet<&IpNet> = has.iter().collect();
        had.iter().filter(|net| !has.contains(net)).copied().collect()
    };
    let addresses = missing(&old.addresses, &new.addresses);
    take_off(&old.device, &addresses, &missing(&old.serves, &new.serves));
}

fn take_off(device: &str, addresses: &[IpNet], routes: &[IpNet]) {
    if addresses.is_empty() && routes.is_empty() {
        return;
    }
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
    if let Err(error) = runtime.block_on(remove(device, addresses, routes)) {
        tracing::debug!(device, error = format!("{error:#}"), "routes and addresses were gone already");
    }
}

/// Takes off what is there; what cannot be taken off does not keep the rest.
async fn remove(device: &str, addresses: &[IpNet], routes: &[IpNet]) -> anyhow::Result<()> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    tokio::spawn(connection);
    let link = handle.link().get().match_name(device.to_owned()).execute().try_next().await?;
    let index = link.context("it is gone")?.header.index;
    for subnet in routes {
        let removed = handle.route().del(route(index, *subnet)?).execute().await;
        removed.unwrap_or_else(|error| tracing::debug!(device, %subnet, %error, "the route stays"));
    }
    for address in addresses {
        let removed = remove_address(&handle, index, *address).await;
        removed.unwrap_or_else(|error| tracing::debug!(device, %address, %error, "the address stays"));
    }
    Ok(())
}

async fn remove_address(handle: &Handle, index: u32, address: IpNet) -> Result<(), rtnetlink::Error> {
    let found = handle.address().get().set_link_index_filter(index).set_address_filter(address.addr());
    // The same address with another prefix length is another one.
    let mut found = found.set_prefix_length_filter(address.prefix_len()).execute();
    while let Some(message) = found.try_next().await? {
        handle.address().del(message).execute().await?;
    }
    Ok(())
}
