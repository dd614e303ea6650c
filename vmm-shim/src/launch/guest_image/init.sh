#!/bin/busybox sh
# First process of the guest. Kernel command line:
#   vmr.name=web1                          host name
#   vmr.ip0=10.0.0.2/24,fd00::2/64         addresses of eth0 (vmr.ip1 of eth1, and so on)
#   vmr.gw0=10.0.0.1,fd00::1               default routes through eth0
# A virtio-serial port feeds a shell with no echo, prompt or line editing: scripts use that one, because bytes that
# follow each other closely get stuck in QEMU's emulated UART. Without such a port the console has the shell.
export PATH=/usr/bin:/usr/sbin:/bin:/sbin HOME=/root TERM=vt100
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /root /tmp /run
# The first file system holds half of the memory at most, programs included.
mount -t tmpfs -o size=75% tmp /tmp
mount -t devpts devpts /dev/pts

while read -r module; do
  insmod "/lib/modules/$module.ko" || echo "vmr: module $module did not load"
done < /lib/modules/order

# The value of vmr.$1, commas as spaces.
argument() {
  for word in $(cat /proc/cmdline); do
    case $word in
      "vmr.$1="*) echo "${word#*=}" | tr , ' ' ;;
    esac
  done
}

hostname "$(argument name)"
ip link set lo up
for path in /sys/class/net/eth*; do
  device=${path##*/}
  [ -e "$path" ] || { echo 'vmr: no eth0'; break; }
  ip link set "$device" up
  for address in $(argument "ip${device#eth}"); do
    ip address add "$address" dev "$device"
  done
  for gateway in $(argument "gw${device#eth}"); do
    case $gateway in
      *:*) ip -6 route add default via "$gateway" dev "$device" ;;
      *) ip route add default via "$gateway" dev "$device" ;;
    esac
  done
done

# The power button.
mkdir -p /etc/acpi/PWRF /var/log /var/run
printf '#!/bin/sh\nexec poweroff -f\n' > /etc/acpi/PWRF/00000080
chmod 755 /etc/acpi/PWRF/00000080
[ ! -e /dev/input/event0 ] || acpid

cd /root
port=$(echo /dev/vport*p1)
if [ -e "$port" ]; then
  # It can be opened only once.
  exec <> "$port" >&0 2>&1
  echo '@@vmr:ready@@'
  sh
else
  echo "This is $(hostname). Type poweroff -f to end it."
  while true; do
    setsid cttyhack sh
  done
fi
poweroff -f
