# Installs the Debian package $1 on a copy of this system that vanishes with the script, and uses it as an operator would.
# Runs in a mount namespace of its own, as root.
set -eu
root=$2
mount -t tmpfs none "$root"
mkdir "$root"/upper "$root"/work "$root"/all
mount -t overlay overlay -o "lowerdir=/,upperdir=$root/upper,workdir=$root/work" "$root/all"
cp "$1" "$root/all/package.deb"
for folder in dev proc; do mount --rbind "/$folder" "$root/all/$folder"; done
for folder in run tmp; do mount -t tmpfs none "$root/all/$folder"; done

cat > "$root/all/use" << 'SCRIPT'
set -eu
step() { echo "step: $*"; }
fail() { echo "failed: $*" >&2; exit 1; }
wait_for() { for _ in $(seq 100); do "$@" > /dev/null 2>&1 && return; sleep 0.1; done; fail "never: $*"; }
FILE=/etc/vmrouter/topology.toml
UNIT=/lib/systemd/system/vmrouter.service

step 'install'
dpkg -i /package.deb
dpkg -s vmrouter | grep -q '^Status: install ok installed$' || fail 'it is not installed'
id -nG vmrouter | grep -qw kvm || fail 'the user is not in the group of the VMMs'
[ "$(stat -c '%a %U:%G' $FILE)" = '640 root:vmrouter' ] || fail "$FILE is $(stat -c '%a %U:%G' $FILE)"
[ -e /etc/systemd/system/multi-user.target.wants/vmrouter.service ] || fail 'the service is not enabled'
systemd-analyze verify $UNIT
vmrouter check $FILE
for page in vmrouter vmrouter-apply packet-stats; do zcat "/usr/share/man/man1/$page.1.gz" | grep -q '^.SH NAME' || fail "man $page"; done
for program in vmrouter packet-stats; do
  bash -c ". /usr/share/bash-completion/completions/$program.bash && complete -p $program" || fail "completions of $program"
done
vmrouter check /usr/share/doc/vmrouter/examples/full.toml

step 'start, as the unit does'
start=$(sed -n 's/^ExecStart=//p' $UNIT)
mkdir -m 0751 /run/vmrouter && install -d -m 0700 -o vmrouter -g vmrouter /var/lib/vmrouter && chown vmrouter: /run/vmrouter
RUNTIME_DIRECTORY=/run/vmrouter STATE_DIRECTORY=/var/lib/vmrouter setpriv --reuid vmrouter --regid vmrouter --init-groups \
  --inh-caps +net_admin --ambient-caps +net_admin $start > /tmp/log 2>&1 &
daemon=$!
wait_for vmrouter history || { cat /tmp/log; exit 1; }

step 'a customer'
printf '[tenant.acme.network.lan]\nsubnets = ["10.0.0.0/24"]\n[tenant.acme.vm.web]\nnic = [{ network = "lan" }]\n' >> $FILE
status=0
vmrouter plan $FILE || status=$?
[ $status = 4 ] || fail "plan ended with $status"
vmrouter apply $FILE
packet-stats --json | grep -q '"acme"' || fail 'the customer is not there'
socket=/run/vmrouter/acme/web.0.sock
[ "$(stat -c %G $socket)" = kvm ] || fail "$socket belongs to $(stat -c %G $socket)"

step 'an upgrade leaves what the operator wrote'
dpkg -i /package.deb
grep -q acme $FILE || fail 'the file was replaced'
packet-stats > /dev/null || fail 'the daemon is gone'
kill $daemon
wait $daemon || fail "the daemon ended with $?: $(cat /tmp/log)"

step 'purge'
dpkg --purge vmrouter
for left in /usr/bin/vmrouter /usr/bin/packet-stats $FILE /var/lib/vmrouter $UNIT; do
  [ ! -e $left ] || fail "$left is still there"
done
echo 'the package does what it should'
SCRIPT
chroot "$root/all" bash /use
