# Reads an object again and again, in each of KINDS: by LOTA's `name`, by the `address` of the VIP, and at the `gateway`'s
# address. Each read prints a line: the time in seconds, the kind, and the HTTP status with the cache status and the digest of
# the content, or an error of curl. The first line has the time of the start. From the environment: KINDS, OBJECT, GATEWAY
# (address and port), ACCESS_KEY, SECRET_KEY, PERIOD in seconds.
read_object() {
    case $1 in
        name) set -- name "http://cwlota.com/$OBJECT" ;;
        address) set -- address --resolve cwlota.com:80:169.254.77.80 "http://cwlota.com/$OBJECT" ;;
        gateway) set -- gateway "http://$GATEWAY/$OBJECT" ;;
    esac
    kind=$1
    shift
    # The credential is passed on standard input, as for other users.
    got=$(printf 'user = "%s:%s"\n' "$ACCESS_KEY" "$SECRET_KEY" |
        curl --config - --silent --show-error --max-time 20 --aws-sigv4 aws:amz:us-east-1:s3 \
            --header x-amz-content-sha256:UNSIGNED-PAYLOAD --output /tmp/object \
            --write-out '%{http_code} %header{lota-cache}' "$@" 2>&1)
    code=$?
    read -r time _ < /proc/uptime
    if [ $code = 0 ]; then
        echo "$time $kind $got $(md5sum < /tmp/object | cut -c 1-32)"
    else
        # On one line.
        echo "$time $kind failed:" $got
    fi
}
read -r time _ < /proc/uptime
echo "$time start"
while :; do
    for each in $KINDS; do
        read_object "$each"
    done
    sleep "$PERIOD"
done
