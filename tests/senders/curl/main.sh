# Reads chunks from standard input, one a line, sends each, and prints the numbers of what was refused.
while read -r given; do
  jq -c '.[].event' <<<"$given" >chunk
  send chunk >refused
  jq -c --argjson given "$given" -s '[.[] | $given[.index].number]' refused
done
