# S3 command lines with default settings except for the endpoint. Usage: `commands.sh CLIENT up|down`, in a folder
# with small.bin and big.bin. `down` writes small.out, big.out and, if the client supports ranges, range.out with
# bytes 100 to 199 of small.bin.
set -eu
endpoint=http://cwlota.com
object=s3://$BUCKET/$1
export AWS_ENDPOINT_URL=$endpoint S3_ENDPOINT_URL=$endpoint

aws_up() { for file in small big; do aws s3 cp --quiet $file.bin "$object-$file"; done; }
aws_down() {
    for file in small big; do aws s3 cp --quiet "$object-$file" $file.out; done
    aws s3api get-object --bucket "$BUCKET" --key aws-small --range bytes=100-199 range.out > response
}

s5cmd_up() { for file in small big; do s5cmd cp --part-size 5 --concurrency 4 $file.bin "$object-$file"; done; }
s5cmd_down() { for file in small big; do s5cmd cp --part-size 5 --concurrency 4 "$object-$file" $file.out; done; }

s3cmd_() {
    s3cmd -c /dev/null --no-ssl --no-progress --quiet --region=us-east-1 --host=cwlota.com \
        '--host-bucket=%(bucket)s.cwlota.com' --multipart-chunk-size-mb=5 "$@"
}
s3cmd_up() { for file in small big; do s3cmd_ put $file.bin "$object-$file"; done; }
s3cmd_down() { for file in small big; do s3cmd_ --force get "$object-$file" $file.out; done; }

rclone_() {
    rclone --config= --s3-no-check-bucket --retries 1 --s3-upload-cutoff 8M --s3-chunk-size 5M \
        --multi-thread-cutoff 8M --multi-thread-streams 4 --multi-thread-chunk-size 5M "$@"
}
remote=":s3,provider=Other,env_auth=true,endpoint=\"$endpoint\",region=us-east-1,force_path_style=true:$BUCKET"
rclone_up() { for file in small big; do rclone_ copyto $file.bin "$remote/rclone-$file"; done; }
rclone_down() {
    for file in small big; do rclone_ copyto "$remote/rclone-$file" $file.out; done
    rclone_ cat --offset 100 --count 100 "$remote/rclone-small" > range.out
}

curl_() {
    # The credential is passed on standard input, since arguments are visible to all users.
    printf 'user = "%s:%s"\n' "$AWS_ACCESS_KEY_ID" "$AWS_SECRET_ACCESS_KEY" |
        curl --config - --silent --show-error --fail-with-body --aws-sigv4 aws:amz:us-east-1:s3 \
            --header x-amz-content-sha256:UNSIGNED-PAYLOAD "$@"
}
curl_up() { for file in small big; do curl_ --upload-file $file.bin "$endpoint/$BUCKET/curl-$file"; done; }
curl_down() {
    curl_ --output small.out "$endpoint/$BUCKET/curl-small"
    curl_ --output range.out --range 100-199 "$endpoint/$BUCKET/curl-small"
    parts=
    for part in 0 1 2 3; do
        from=$((part * 6291456))
        curl_ --output part.$part --range $from-$((from + 6291455)) "$endpoint/$BUCKET/curl-big" &
        parts="$parts part.$part"
    done
    wait
    cat $parts > big.out
}

"$1_$2"
